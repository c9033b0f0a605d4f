"""What the commands do once their options have been checked.

Tasks import torch, which takes seconds. A command imports its task when it runs, after checking its options.
"""
