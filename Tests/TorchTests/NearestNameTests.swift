import Testing

@testable import Torch

struct NearestNameTests {
    let keys = ["layers", "modelDim", "heads", "learningRate", "dropout", "mixer"]

    @Test(arguments: [
        ("leyers", "layers"), ("model_dim", "modelDim"), ("Heads", "heads"), ("ehads", "heads"),
        ("learningrate", "learningRate"), ("learn", "learningRate"), ("layer", "layers"), ("drop-out", "dropout"),
    ])
    func findsTheNameThatWasMeant(typed: String, meant: String) {
        #expect(NearestName.find(for: typed, among: keys) == meant)
    }

    @Test(arguments: ["banana", "", "x", "momentum", "🙂🙂🙂🙂🙂", String(repeating: "a", count: 100_000)])
    func suggestsNothingFarAway(typed: String) {
        #expect(NearestName.find(for: typed, among: keys) == nil)
    }

    @Test func hintNamesTheNearestOrAll() {
        #expect(NearestName.hint(for: "leyers", among: keys) == "did you mean 'layers'?")
        #expect(NearestName.hint(for: "banana", among: ["a", "b"]) == "expected one of a, b")
        #expect(NearestName.hint(for: "banana", among: []) == "")
    }

    @Test func distanceIsAMetricOnRandomWords() {
        var generator = SystemRandomNumberGenerator()
        func word() -> [Character] {
            (0..<Int.random(in: 0...6, using: &generator)).map { _ in "abc".randomElement(using: &generator)! }
        }
        for _ in 0..<300 {
            let (a, b) = (word(), word())
            let distance = NearestName.editDistance(a, b)
            #expect(distance == NearestName.editDistance(b, a))
            #expect((distance == 0) == (a == b))
            #expect(distance >= abs(a.count - b.count) && distance <= max(a.count, b.count))
        }
    }

    @Test func aSwapIsOneEdit() {
        #expect(NearestName.editDistance(Array("abcd"), Array("acbd")) == 1)
        #expect(NearestName.editDistance(Array("kitten"), Array("sitting")) == 3)
    }
}
