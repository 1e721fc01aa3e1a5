// Room: Datasets
