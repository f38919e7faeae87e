"""Defines omni-rl bench: the benchmarks behind every published figure."""

from pathlib import Path
from typing import Annotated

import typer

from omni_rl.runtime import prepare

bench = typer.Typer(help="Measure; each benchmark writes one file.", no_args_is_help=True)
bench.callback()(prepare)
BenchOut = Annotated[Path, typer.Option(help="Directory of the result files.")]


@bench.command("demo")
def bench_demo(out: BenchOut = Path("bench")) -> None:
    """Run the demo in float32, bfloat16, and bfloat16 with batch-invariant numerics (writes demo.json)."""
    from omni_rl_bench.demo import bench_demo as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("sync")
def bench_sync(
    out: BenchOut = Path("bench"),
    megabytes: Annotated[
        list[int] | None, typer.Option(help="Size of the weights, 50 or 1000.  \\[default: both]")
    ] = None,
    syncs: Annotated[int, typer.Option(min=2, help="Syncs at each size.")] = 30,
) -> None:
    """Compare weight syncs with a plain copy, saving and reloading, and Ray's object store (writes sync.json)."""
    from omni_rl_bench.sync import bench_sync as measure

    typer.echo(f"wrote {measure(out, megabytes or [50, 1000], syncs, lambda line: typer.echo(line, err=True))}")


@bench.command("scoring")
def bench_scoring(out: BenchOut = Path("bench")) -> None:
    """Compare scoring speed and memory with transformers on the same weights (writes scoring.json)."""
    from omni_rl_bench.scoring.command import bench_scoring as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("ingest")
def bench_ingest(out: BenchOut = Path("bench")) -> None:
    """Post a step's logprobs through HTTP to a verdict, on one core (writes ingest.json)."""
    from omni_rl_bench.ingest import bench_ingest as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("stalls")
def bench_stalls(out: BenchOut = Path("bench")) -> None:
    """Measure what 200 clients that stall cost 50 that post (writes stalls.json)."""
    from omni_rl_bench.stalls import bench_stalls as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("fuzz")
def bench_fuzz(
    out: BenchOut = Path("bench"),
    requests: Annotated[int, typer.Option(min=1, help="How many are sent.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Of the grammar: the same seed is the same requests.")] = 0,
    first: Annotated[int, typer.Option(min=0, help="The number of the first one, to send some again.")] = 0,
) -> None:
    """Send mutated requests to every route: no fault, no growth, no standstill (writes fuzz.json)."""
    from omni_rl_bench.fuzz.command import bench_fuzz as measure

    typer.echo(f"wrote {measure(out, requests, seed, first)}")


@bench.command("watch")
def bench_watch(out: BenchOut = Path("bench")) -> None:
    """Measure what a watched run's own thread pays for a step and for an update (writes watch.json)."""
    from omni_rl_bench.watch import bench_watch as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("fingerprints")
def bench_fingerprints(out: BenchOut = Path("bench")) -> None:
    """Compare a fingerprint of weights with a plain sum of the same bytes (writes fingerprints.json)."""
    from omni_rl_bench.fingerprints import bench_fingerprints as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("check")
def bench_check(out: BenchOut = Path("bench")) -> None:
    """Measure what the check costs of the demo's step (writes check.json)."""
    from omni_rl_bench.check import bench_check as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("replicas")
def bench_replicas(
    out: BenchOut = Path("bench"),
    rounds: Annotated[int, typer.Option(min=1, help="Of both sides, in turns.")] = 9,
) -> None:
    """Sample the same steps with one replica and with two (writes replicas.json)."""
    from omni_rl_bench.replicas import bench_replicas as measure

    typer.echo(f"wrote {measure(out, rounds, lambda line: typer.echo(line, err=True))}")


@bench.command("dashboard")
def bench_dashboard(out: BenchOut = Path("bench")) -> None:
    """Open the dashboard on a million steps, in Chromium (writes dashboard.json)."""
    from omni_rl_bench.dashboard import bench_dashboard as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("agreement")
def bench_agreement(out: BenchOut = Path("bench")) -> None:
    """Compare the trainer's numerics and transformers with vLLM's prefill and decode (writes agreement.json)."""
    from omni_rl_bench.agreement.command import bench_agreement as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("operators")
def bench_operators(out: BenchOut = Path("bench")) -> None:
    """Compare vLLM's CPU operators for decoding with its own for prefill (writes operators.json)."""
    from omni_rl_bench.agreement.operators import bench_operators as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("judging")
def bench_judging(out: BenchOut = Path("bench")) -> None:
    """Judge 4,000 posted steps where nothing is wrong, in four minutes (writes judging.json)."""
    from omni_rl_bench.judging.command import bench_judging as measure

    typer.echo(f"wrote {measure(out)}")


@bench.command("learning")
def bench_learning(
    out: BenchOut = Path("bench"),
    seed: Annotated[list[int] | None, typer.Option(help="Seeds.  \\[default: 0, 1 and 2]")] = None,
    case: Annotated[list[str] | None, typer.Option(help="As grpo, ppo, grpo-rate-0.  \\[default: all]")] = None,
    parts: Annotated[Path, typer.Option(help="Finished runs, which are not run again.")] = Path("runs/learning"),
) -> None:
    """Test that GRPO and PPO learn digits, and controls do not: 90 minutes, not in `all` (writes learning.json)."""
    from omni_rl_bench.learning.command import bench_learning as measure

    path = measure(out, seed or [0, 1, 2], case or [], parts, lambda line: typer.echo(line, err=True))
    typer.echo(f"wrote {path}")


@bench.command("gpu")
def bench_gpu(
    out: BenchOut = Path("bench"),
    part: Annotated[list[str] | None, typer.Option(help="As agreement, trainer, scoring.  \\[default: all]")] = None,
) -> None:
    """Compare training copy and trainer on a CUDA device with the CPU, not in `all` (writes gpu.json)."""
    from omni_rl_bench.gpu.command import bench_gpu as measure

    typer.echo(f"wrote {measure(out, part or [], lambda line: typer.echo(line, err=True))}")


@bench.command("goals")
def bench_goals(out: BenchOut = Path("bench")) -> None:
    """List the goals of every result file, and whether they are met."""
    from omni_rl_bench.result import goal_lines

    typer.echo("\n".join(goal_lines(out)))


@bench.command("all")
def bench_all(out: BenchOut = Path("bench")) -> None:
    """Run every benchmark, one after the other, and print a table of their goals."""
    bench_demo(out)
    bench_sync(out)
    bench_scoring(out)
    bench_ingest(out)
    bench_stalls(out)
    bench_fuzz(out)
    bench_watch(out)
    bench_judging(out)
    bench_fingerprints(out)
    bench_check(out)
    bench_replicas(out)
    bench_dashboard(out)
    bench_agreement(out)
    bench_operators(out)
    bench_goals(out)
