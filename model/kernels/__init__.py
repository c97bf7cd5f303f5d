"""The small operations between matrix products, fused so that each chain passes over memory once."""
