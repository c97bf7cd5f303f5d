"""One job on several devices: which rank computes what, and what ranks exchange (docs/performance.md)."""
