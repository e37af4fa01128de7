"""From folders to function versions, without importing what is in them."""
