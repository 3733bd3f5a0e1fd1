"""Backends: how a Program is built, run and verified on each target."""
