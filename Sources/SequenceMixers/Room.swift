// Room: SequenceMixers
