// Room: TorchOptimizers
