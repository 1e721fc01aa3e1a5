import Testing

@testable import TorchOptimizers
