"""Servers, clients, brokers and ways of waiting that the tests share. Nothing here is a test."""
