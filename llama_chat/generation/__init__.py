"""Prefill, decode, sampling and stopping."""
