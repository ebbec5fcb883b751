"""The servo bus: protocol, driver, last safety check, and the process that owns the port."""
