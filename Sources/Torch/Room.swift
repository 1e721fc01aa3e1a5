// Room: Torch
