// What each figure is, for whoever points at its name.

const WHAT = {
  logprob_abs_diff_mean: "mean of abs d over the tokens that count; d is the trainer's logprob of a sampled token less the engine's. 0 is agreement.",
  logprob_abs_diff_p99: "99 of 100 tokens have an abs d below this.",
  logprob_abs_diff_max: "abs d of the token that is furthest off.",
  gen_kl_error: "mean of exp(d) − 1 − d, the k3 estimate of the KL divergence. 0 is agreement.",
  policy_kl_error: "mean of exp(−d) − 1 + d, the same the other way round. 0 is agreement.",
  token_mult_prob_error: "mean of exp(abs d): by which factor the two probabilities of a token differ. 1 is agreement.",
  seq_mult_prob_error: "mean of exp(abs d) over the tokens of one answer. 1 is agreement.",
  ess: "effective sample size of the importance weights exp(d), as a share of the tokens: 1 where every token weighs the same.",
  router_flips: "answers with a token for which the router picked other experts on the two sides.",
  flips: "tokens for which this layer's router picked other experts on the two sides.",
  reward: "mean reward of the step's answers, as the trainer posted it.",
  held_out_reward: "mean reward on prompts that are not trained on.",
  kl: "KL divergence of the policy from its reference, as the trainer posted it.",
  clipped: "share of the tokens whose importance ratio was clipped.",
  clip_fraction: "share of the tokens whose importance ratio was clipped.",
  staleness: "how many syncs ago the weights were served that sampled a token, mean over the tokens, as the trainer posted it. 0: the newest weights.",
  loss: "the trainer's loss of the step.",
  grad_norm: "norm of the gradient before it was clipped.",
};
const UNITS = { logprob_abs_diff_mean: "nats", logprob_abs_diff_p99: "nats", logprob_abs_diff_max: "nats", gen_kl_error: "nats", policy_kl_error: "nats", kl: "nats", reward: "mean", clipped: "share of tokens", clip_fraction: "share of tokens", ess: "share of tokens", staleness: "syncs" };
const NAMES = { held_out_reward: "reward on held-out prompts, mean", ess: "effective sample size, share of tokens" };

export const what = (name) => WHAT[name] ?? `${name}, as the trainer posted it.`;
export const titleOf = (name) => NAMES[name] ?? (UNITS[name] ? `${name}, ${UNITS[name]}` : name);
/** What is taken from a figure before it is drawn, so that its logarithm shows something. */
export const SHIFT = { token_mult_prob_error: 1 };
/** Figures of drift that a chart can be of. */
export const DRIFT = ["logprob_abs_diff_mean", "logprob_abs_diff_p99", "logprob_abs_diff_max", "gen_kl_error", "token_mult_prob_error"];
