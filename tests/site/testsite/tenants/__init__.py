"""A database engine like those of projects with tenants: what a middleware sets on it holds for each connection."""
