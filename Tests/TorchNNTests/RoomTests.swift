import Testing

@testable import TorchNN
