"""NemotronH, the language model: Mamba2, attention, MoE and MLP blocks over packed sequences."""
