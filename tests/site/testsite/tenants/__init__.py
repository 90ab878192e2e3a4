"""A database engine as projects with tenants have one: what a middleware sets on it holds for each connection."""
