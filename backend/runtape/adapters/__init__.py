"""Technologies behind the ports.  No adapter imports another, and no driver type leaves one."""
