// Room: Inference
