import Foundation
import Testing
import Torch

struct CheckedDecodingTests {
    enum Norm: String, NamedChoice { case pre, post }

    struct Settings: Codable, Equatable {
        var layers = 4
        var rate = 0.5
        var norm = Norm.pre

        init() {}
        init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            let standard = Settings()
            layers = try values.value(.layers, default: standard.layers, .atLeast(1))
            rate = try values.value(.rate, default: standard.rate, .from(0, below: 1))
            norm = try values.value(.norm, default: standard.norm)
        }
    }

    private func decode(_ json: String) throws -> Settings {
        try JSONDecoder().decode(Settings.self, from: Data(json.utf8))
    }

    @Test func absentKeysTakeTheirDefaults() throws {
        #expect(try decode("{}") == Settings())
        #expect(try decode(#"{"layers": null, "norm": "post"}"#).norm == .post)
    }

    @Test(arguments: [
        (#"{"layers": 0}"#, "expected at least 1, found 0"),
        (#"{"rate": 1}"#, "expected at least 0.0 and less than 1.0, found 1.0"),
        (#"{"norm": "prae"}"#, "expected one of pre, post, found 'prae'; did you mean 'pre'?"),
        (#"{"norm": "none"}"#, "expected one of pre, post, found 'none'"),
    ])
    func valuesOutOfBoundsAreRefused(json: String, text: String) {
        let error = #expect(throws: DecodingError.self) { try decode(json) }
        guard case .dataCorrupted(let context) = error else {
            Issue.record("expected corrupt data, found \(String(describing: error))")
            return
        }
        #expect(context.debugDescription == text)
        #expect(context.codingPath.count == 1)
    }

    @Test func boundsHoldAtTheirEdges() {
        #expect(Bounds.atLeast(1).contains(1) && !Bounds.atLeast(1).contains(0))
        #expect(Bounds.above(0.0).contains(1e-300) && !Bounds.above(0.0).contains(0))
        #expect(Bounds.between(0, and: 1).contains(1) && !Bounds.between(0, and: 1).contains(2))
        #expect(!Bounds.from(0, below: 1.0).contains(1) && !Bounds.from(0, below: 1.0).contains(.nan))
        #expect(Bounds.between(0, and: 1).description == "at least 0 and at most 1")
    }
}
