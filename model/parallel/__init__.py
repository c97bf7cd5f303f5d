"""One job on several devices: who computes what, and what they tell one another (docs/performance.md)."""
