"""The pair of policies: started here or found where a service hosts them, and asked as one, over all replicas."""
