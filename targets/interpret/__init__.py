"""The numpy reference as a target, so that it is compared with itself by step and as a sequence."""
