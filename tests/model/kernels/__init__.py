"""Every fused operation against its reference."""
