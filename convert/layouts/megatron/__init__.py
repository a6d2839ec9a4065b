"""The Megatron-Core layout: torch_dist and the legacy torch format."""
