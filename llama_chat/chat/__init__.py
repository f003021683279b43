"""Conversations: messages, templates, prompt files, saving, and the chat session."""
