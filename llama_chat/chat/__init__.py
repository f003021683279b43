"""Conversations: messages, templates, prompt files and the session that holds the cache."""
