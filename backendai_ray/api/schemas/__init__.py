"""What goes over the wire, as pydantic models; nothing of it travels further in than the routers."""
