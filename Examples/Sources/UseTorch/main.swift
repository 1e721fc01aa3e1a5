import Torch

print("Hello")
