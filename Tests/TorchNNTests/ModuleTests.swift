import Testing
import Torch
import TorchNN

/// A projection kept in a plain value.
private struct Pair {
    let left: Linear
    let right: Linear?
}

private enum Choice {
    case none
    case some(one: LayerNorm)
}

private class Base: Module {
    let norm = LayerNorm(2)
}

private final class Branch: Base {
    let projection: Linear
    let sizes = Array(0..<1000)
    let dropout: Dropout

    init(_ generator: RandomGenerator) {
        projection = Linear(2, 3, bias: false, using: generator)
        dropout = Dropout(0.5, using: generator)
        super.init()
    }
}

private final class Tree: Module {
    let embedding: Embedding
    let blocks: [Branch]
    let byName: [String: Linear]
    let pair: Pair
    let choice = Choice.some(one: LayerNorm(1))
    let absent: Linear? = nil
    let table = Buffer(Tensor.arange(0..<3))
    let average = Buffer(Tensor.zeros([2]))
    let scratch = Buffer(Tensor.zeros([4]), isPersistent: false)
    let tied: Parameter
    lazy var later = RMSNorm(1)
    var parent: Module?

    init(_ generator: RandomGenerator) {
        embedding = Embedding(4, 2, using: generator)
        blocks = [Branch(generator), Branch(generator)]
        byName = ["b": Linear(1, 1, using: generator), "a": Linear(1, 2, bias: false, using: generator)]
        pair = Pair(
            left: Linear(1, 1, bias: false, using: generator), right: Linear(2, 1, bias: false, using: generator))
        tied = embedding.weight
        super.init()
        parent = self
        _ = later
    }
}

@Suite struct ModuleTests {
    private let tree = Tree(RandomGenerator(seed: 1))

    @Test func parametersAreNamedByTheirPathInOrder() {
        #expect(
            tree.namedParameters().map(\.name) == [
                "embedding.weight",
                "blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.0.projection.weight",
                "blocks.1.norm.weight", "blocks.1.norm.bias", "blocks.1.projection.weight",
                "byName.a.weight", "byName.b.weight", "byName.b.bias",
                "pair.left.weight", "pair.right.weight", "choice.one.weight", "choice.one.bias", "later.weight",
            ])
        #expect(tree.namedBuffers().map(\.name) == ["table", "average", "scratch"])
        #expect(tree.namedModules().map(\.name).prefix(4) == ["", "embedding", "blocks.0", "blocks.0.norm"])
    }

    @Test func weightsAreCountedOnce() {
        #expect(tree.parameterCount() == 8 + 2 * (4 + 6) + 2 + 2 + 1 + 2 + 2 + 1)
        tree.blocks[0].freeze()
        #expect(tree.parameterCount(trainableOnly: true) == tree.parameterCount() - 10)
        tree.freeze()
        #expect(tree.parameterCount(trainableOnly: true) == 0)
        tree.unfreeze()
        #expect(tree.parameterCount(trainableOnly: true) == tree.parameterCount())
    }

    @Test func theModeReachesTheWholeTree() {
        #expect(tree.isTraining && tree.blocks[1].dropout.isTraining)
        tree.evaluate()
        #expect(tree.namedModules().allSatisfy { !$0.module.isTraining })
        tree.blocks[1].train()
        #expect(tree.blocks[1].dropout.isTraining && !tree.blocks[0].dropout.isTraining && !tree.isTraining)
        tree.train()
        #expect(tree.namedModules().allSatisfy { $0.module.isTraining })
    }

    @Test func frozenParametersGetNoGradient() {
        let linear = Linear(3, 2, using: RandomGenerator(seed: 2))
        linear.weight.isTrainable = false
        linear(Tensor.ones([4, 3])).sum().backward()
        #expect(linear.weight.grad == nil)
        #expect(linear.bias?.grad?.scalars(as: Double.self) == [4, 4])
        linear(Tensor.ones([4, 3])).sum().backward()
        #expect(linear.bias?.grad?.scalars(as: Double.self) == [8, 8])
        linear.zeroGradients()
        #expect(linear.bias?.grad == nil)
    }

    @Test func typesAreConvertedWhereTheyAreReal() {
        tree.blocks[0].freeze()
        tree.to(.float64)
        #expect(tree.parameters().allSatisfy { $0.value.dtype == .float64 })
        #expect(tree.average.value.dtype == .float64)
        #expect(tree.table.value.dtype == .int64)
        #expect(!tree.blocks[0].norm.weight.isTrainable && tree.blocks[1].norm.weight.isTrainable)
        tree.to(Device.cpu)
        #expect(tree.parameters().allSatisfy { $0.value.device == .cpu })
        #expect(misuse { tree.to(.int64) } == "Module.to: expected a floating-point type, got int64")
    }

    @Test func aParameterOwnsItsMemory() {
        let source = Tensor.ones([2, 3]).transposed()
        let parameter = Parameter(source)
        #expect(parameter.value.isContiguous && parameter.value.requiresGrad && parameter.value.shape == [3, 2])
        parameter.value.fillInPlace(5)
        #expect(source.maximum().item() == 1)
        parameter.isTrainable = false
        parameter.value = Tensor.zeros([2])
        #expect(!parameter.value.requiresGrad)
        #expect(misuse { _ = Parameter(Tensor([1, 2])) } == "Parameter: expected a floating-point tensor, got int64")
    }
}

@Suite struct LoadingTests {
    private let tree = Tree(RandomGenerator(seed: 1))
    private let other = Tree(RandomGenerator(seed: 2))

    private func copy(_ tensors: [String: Tensor]) -> [String: Tensor] { tensors.mapValues { $0.cloned() } }

    private func isSame(_ a: [String: Tensor], _ b: [String: Tensor]) -> Bool {
        a.keys == b.keys && a.allSatisfy { name, tensor in b[name].map { $0.isIdentical(to: tensor) } ?? false }
    }

    @Test func whatIsSavedIsLoaded() throws {
        let saved = tree.stateDictionary()
        #expect(Set(saved.keys) == Set(tree.namedParameters().map(\.name) + ["table", "average"]))
        #expect(saved.values.allSatisfy { !$0.requiresGrad })
        #expect(!isSame(saved, other.stateDictionary()))
        let report = try other.load(saved)
        #expect(report.loaded.count == saved.count && report.missing.isEmpty && report.unexpected.isEmpty)
        #expect(isSame(saved, other.stateDictionary()))
        let weight = other.blocks[0].projection.weight.value
        #expect(weight.requiresGrad && !weight.sharesStorage(with: tree.blocks[0].projection.weight.value))
    }

    @Test func typesAreConverted() throws {
        let doubled = tree.stateDictionary().mapValues { $0.dtype.isFloatingPoint ? $0.to(.float64) : $0 }
        try other.load(doubled)
        #expect(isSame(tree.stateDictionary(), other.stateDictionary()))
    }

    @Test func aSharedParameterMayComeUnderAnyOfItsNames() throws {
        var saved = copy(tree.stateDictionary())
        let weight = saved.removeValue(forKey: "embedding.weight")
        saved["tied"] = weight
        #expect(try other.load(saved).missing.isEmpty)
        #expect(other.embedding.weight.value.detached().isIdentical(to: tree.embedding.weight.value.detached()))
        saved["embedding.weight"] = weight.map { $0 + 1 }
        try other.load(saved)
        #expect(other.tied.value.detached().isIdentical(to: tree.embedding.weight.value.detached() + 1))
    }

    @Test func strictLoadingNamesWhatIsWrong() throws {
        var saved = copy(tree.stateDictionary())
        saved["blocks.0.projektion.weight"] = saved.removeValue(forKey: "blocks.0.projection.weight")
        saved["zzz"] = Tensor.zeros([1])
        saved["average"] = Tensor.zeros([3])
        saved["table"] = Tensor.zeros([3])
        let before = copy(other.stateDictionary())
        let error = try #require(throws: LoadError.self) { try other.load(saved) }
        #expect(error.missing == ["blocks.0.projection.weight"])
        #expect(error.unexpected == ["blocks.0.projektion.weight", "zzz"])
        #expect(
            error.description
                == "tensors do not fit Tree: missing 1: 'blocks.0.projection.weight' (given is 'blocks.0.projektion.weight'); "
                + "unexpected 2: 'blocks.0.projektion.weight' (nearest 'blocks.0.projection.weight'), 'zzz'; "
                + "do not fit 2: 'table' expected int64, found float32, 'average' expected [2], found [3]")
        #expect(isSame(before, other.stateDictionary()))
    }

    @Test func lenientLoadingReportsTheRest() throws {
        var saved = copy(tree.stateDictionary())
        saved["later.weight"] = nil
        saved["zzz"] = Tensor.zeros([1])
        let before = other.later.weight.value.cloned()
        let report = try other.load(saved, matching: .lenient)
        #expect(report.missing == ["later.weight"] && report.unexpected == ["zzz"])
        #expect(report.loaded.count == saved.count - 1)
        #expect(other.later.weight.value.isIdentical(to: before))
        saved["average"] = Tensor.zeros([3])
        let error = #expect(throws: LoadError.self) { try other.load(saved, matching: .lenient) }
        #expect(error?.description == "tensors do not fit Tree: do not fit 1: 'average' expected [2], found [3]")
    }

    @Test func aLongListIsCut() {
        let error = #expect(throws: LoadError.self) { try tree.load([:]) }
        #expect(error?.missing.count == 17)
        #expect(error?.description.hasSuffix("and 9 more") == true)
        #expect(error?.description.contains("\n") == false)
    }
}
