"""Subjects, the things that can be measured: attentions, their stages, and the shared inputs and exact answers."""
