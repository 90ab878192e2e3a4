"""What the tests share: servers, clients, brokers, and how a test waits. Nothing here is a test."""
