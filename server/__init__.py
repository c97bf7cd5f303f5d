"""The HTTP API: takes jobs in, says how they do, gives results out. Imports `jobs` only, never torch."""
