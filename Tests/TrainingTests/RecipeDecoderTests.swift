import Foundation
import Testing
import Torch

@testable import Training

struct RecipeDecoderTests {
    /// A model as another room would write it: the mechanism's options share the section of its name.
    struct Model: Codable, Equatable {
        var layers = 2
        var mixer: Mixer

        init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            layers = try values.value(.layers, default: 2, .atLeast(1))
            mixer = try values.decode(Mixer.self, forKey: .mixer)
        }
    }

    struct UnknownMechanism: Error, CustomStringConvertible {
        var name: String
        var description: String { "no mechanism '\(name)'; did you mean 'momentum'?" }
    }

    struct Mixer: Codable, Equatable {
        enum CodingKeys: String, CodingKey { case name }
        struct Options: Codable, Equatable { var stepSize: Double }

        var name: String
        var options: Options

        init(from decoder: any Decoder) throws {
            name = try decoder.container(keyedBy: CodingKeys.self).decode(String.self, forKey: .name)
            guard name == "momentum" else { throw UnknownMechanism(name: name) }
            options = try Options(from: decoder)
        }

        func encode(to encoder: any Encoder) throws {
            var values = encoder.container(keyedBy: CodingKeys.self)
            try values.encode(name, forKey: .name)
            try options.encode(to: encoder)
        }
    }

    private func decode<Value: Decodable>(_ type: Value.Type, _ yaml: String, ignoring: Set<String> = []) throws
        -> Value
    {
        try RecipeDecoder.decode(type, from: RecipeNode(yaml: yaml, name: "x.yaml"), at: ["model"], ignoring: ignoring)
    }

    private func message<Value: Decodable>(_ type: Value.Type, _ yaml: String) -> String? {
        (#expect(throws: RecipeError.self) { try decode(type, yaml) })?.description
    }

    @Test func optionsShareTheSectionOfTheirName() throws {
        let yaml = "layers: 3\nmixer:\n  name: momentum\n  stepSize: 1\n"
        let model = try decode(Model.self, yaml)
        #expect(model.layers == 3 && model.mixer.options.stepSize == 1)
        #expect(try decode(Model.self, RecipeEncoder.encode(model).yaml()) == model)
    }

    @Test func errorsOfNestedTypesHavePathAndLine() {
        #expect(
            message(Model.self, "mixer:\n  name: momentum\n  stepSise: 1\n")
                == "unknown key 'model.mixer.stepSise' in x.yaml:3; did you mean 'stepSize'?")
        #expect(
            message(Model.self, "mixer:\n  name: momentum\n  stepSize: 1\n  banana: 1\n")
                == "unknown key 'model.mixer.banana' in x.yaml:4; expected one of name, stepSize")
        #expect(
            message(Model.self, "mixer:\n  name: mommentum\n")
                == "'model.mixer' in x.yaml:2: no mechanism 'mommentum'; did you mean 'momentum'?")
        #expect(message(Model.self, "mixer:\n  name: momentum\n") == "missing key 'model.mixer.stepSize' in x.yaml:2")
        #expect(
            message(Model.self, "layers: 0\nmixer: 1") == "'model.layers' in x.yaml:1: expected at least 1, found 0")
        #expect(
            message(Model.self, "\nmixer: 1")
                == "'model.mixer' in x.yaml:2: expected a section of keys, found the integer 1")
    }

    @Test func keysReadElsewhereCanBeIgnored() throws {
        #expect(try decode(Mixer.Options.self, "{name: a, stepSize: 2}", ignoring: ["name"]).stepSize == 2)
        #expect(throws: RecipeError.self) { try decode(Mixer.Options.self, "{name: a, stepSize: 2}") }
    }

    struct Everything: Codable, Equatable {
        var boolean: Bool
        var float: Float
        var byte: UInt8
        var absent: Int?
        var lists: [[Int]]
        var dictionary: [String: Double]
        var node: RecipeNode
    }

    @Test func everyKindOfValueComesBack() throws {
        let node = RecipeNode(
            .section([
                RecipeNode.Entry(key: "a", value: RecipeNode(.list([RecipeNode(.null), RecipeNode(.text("b"))])))
            ]))
        let value = Everything(
            boolean: true, float: 0.1, byte: 255, absent: nil, lists: [[], [1, 2]], dictionary: ["x y": 0.1, "z": 2],
            node: node)
        let yaml = try RecipeEncoder.encode(value).yaml()
        #expect(yaml.contains("float: 0.1\n"))
        #expect(try decode(Everything.self, yaml) == value)
        // JSON is YAML: the same decoder reads what other programs write.
        #expect(try decode(Everything.self, String(decoding: JSONEncoder().encode(value), as: UTF8.self)) == value)
        #expect(try JSONDecoder().decode(Everything.self, from: JSONEncoder().encode(value)) == value)
    }

    @Test func integersThatDoNotFitAreRefused() {
        let error = #expect(throws: RecipeError.self) { try decode([String: UInt8].self, "{a: 256}") }
        #expect(error?.description == "'model.a' in x.yaml:1: expected an integer from 0 to 255, found the integer 256")
        #expect(throws: RecipeError.self) { try decode([String: UInt8].self, "{a: -1}") }
        #expect(throws: RecipeError.self) { try decode([String: Int].self, "{a: 1e300}") }
        #expect(throws: Never.self) { try decode([String: Int].self, "{a: 1e3}") }
    }

    @Test(
        arguments: [
            ("1", .integer(1)), ("-0", .integer(0)), ("+7", .integer(7)), ("012", .integer(12)), ("1.", .number(1)),
            (".5", .number(0.5)), ("1e-3", .number(1e-3)), ("3.E2", .number(300)), ("yes", .text("yes")),
            ("0x10", .text("0x10")),
            ("1_000", .text("1_000")), ("1:30", .text("1:30")), ("2026-01-01", .text("2026-01-01")),
            ("e5", .text("e5")),
            ("True", .boolean(true)), ("~", .null), ("-", .text("-")), (".", .text(".")),
        ] as [(String, RecipeNode.Content)])
    func plainScalarsFollowYAML12(text: String, content: RecipeNode.Content) {
        #expect(RecipeNode(RecipeNode.content(ofPlain: text)) == RecipeNode(content))
    }
}
