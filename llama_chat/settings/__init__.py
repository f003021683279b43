"""Every setting: its definition, and the source of its value.

A setting has one name in four spellings: ``--top-p`` on the command line, ``LLAMA_CHAT_TOP_P`` in
the environment, ``top_p`` in the settings file, ``/top-p`` in the chat. A flag overrides the
environment, which overrides the file, which overrides what the model suggests, which overrides the
default.
"""
