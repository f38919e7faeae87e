"""What a setting will cost: from constants that were measured here, and limits that hardware makers publish."""
