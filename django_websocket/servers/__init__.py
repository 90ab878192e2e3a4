"""Ready-made WebSocket views, and examples of three ways to write one."""
