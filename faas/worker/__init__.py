"""What runs inside a sandbox: standard library and msgspec only, and nothing of the rest of the package."""
