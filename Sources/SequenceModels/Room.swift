// Room: SequenceModels
