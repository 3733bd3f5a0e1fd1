"""Microcontrollers: the C target built for bare-metal boards and run on a simulator."""
