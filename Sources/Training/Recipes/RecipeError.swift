/// A recipe, or an override of it, is not as it must be. The text is one line: what, where, and what was expected.
public struct RecipeError: Error, CustomStringConvertible, Equatable, Sendable {
    public enum Problem: Equatable, Sendable {
        /// The file is missing, a folder, …
        case unreadable(String)
        /// An override that is not KEY=VALUE.
        case override(String)
        /// The text is empty or not YAML.
        case broken(String)
        /// A key that nothing reads, with a hint at valid ones.
        case unknownKey(hint: String)
        case missingKey
        /// A value of the wrong type or out of range: "expected …, found …".
        case invalid(String)
    }

    public var problem: Problem
    /// The keys that lead to the value, as in `model.mixer.name`; empty for the whole recipe.
    public var keyPath: String
    /// Where the value was written: `demo.yaml:7`, or the override's own text.
    public var place: String

    public init(_ problem: Problem, keyPath: String = "", place: String = "") {
        self.problem = problem
        self.keyPath = printable(keyPath, limit: 120)
        self.place = printable(place, limit: 400)
    }

    public var description: String {
        let at = place.isEmpty ? "" : " in \(place)"
        let subject = keyPath.isEmpty ? (place.isEmpty ? "the recipe" : place) : "'\(keyPath)'\(at)"
        let text =
            switch problem {
            case .unreadable(let text), .override(let text), .broken(let text):
                "\(place.isEmpty ? "the recipe" : place): \(text)"
            case .unknownKey(let hint): "unknown key '\(keyPath)'\(at)\(hint.isEmpty ? "" : "; \(hint)")"
            case .missingKey: "missing key '\(keyPath)'\(at)"
            case .invalid(let text): "\(subject): \(text)"
            }
        return printable(text, limit: 1000)
    }
}

/// The text on one line, without control characters, cut to `limit` characters: what it quotes comes from outside.
func printable(_ text: String, limit: Int) -> String {
    var result = ""
    for scalar in text.unicodeScalars.prefix(limit) {
        switch scalar {
        case "\n", "\r", "\t", "\u{85}", "\u{2028}", "\u{2029}": result += " "
        default:
            let isControl = scalar.properties.generalCategory == .control
            result.unicodeScalars.append(isControl ? "\u{FFFD}" : scalar)
        }
    }
    return text.unicodeScalars.count > limit ? result + "…" : result
}
