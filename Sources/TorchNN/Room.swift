// Room: TorchNN
