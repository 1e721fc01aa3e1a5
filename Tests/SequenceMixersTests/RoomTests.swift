import Testing

@testable import SequenceMixers
