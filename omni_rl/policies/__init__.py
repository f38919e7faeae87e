"""The pair of policies of a run, started here or found where a service hosts them, and used as one over all
replicas."""
