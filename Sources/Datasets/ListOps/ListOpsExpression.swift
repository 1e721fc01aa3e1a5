/// A well-formed ListOps expression: a digit, or an operator with at least one argument (Nangia and Bowman, 2018,
/// arXiv 1804.06028).
///
/// It is kept as the flat tokens that a model reads, which is a tree in prefix order. There are two notations:
/// these tokens as they are, `[MAX 2 9 ]`, and the binary nesting of the published files,
/// `( ( ( [MAX 2 ) 9 ) ] )`, in which every pair joins what stands so far with the next argument.
public struct ListOpsExpression: Hashable, Sendable {
    /// The tokens without parentheses.
    public let tokens: [ListOpsToken]

    /// Deeper nesting is refused: the recursive evaluator's stack is finite, a hostile file is not.
    public static let maximumNesting = 256

    /// - Throws: ``DatasetError/malformedExpression(token:reason:)`` for tokens that are no expression.
    public init(tokens: [ListOpsToken]) throws(DatasetError) {
        var openLists: [Int] = []
        for (index, token) in tokens.enumerated() {
            if index > 0 && openLists.isEmpty {
                throw .malformedExpression(
                    token: index + 1, reason: "the expression has already ended, found `\(token)`")
            }
            if token.isOperator {
                openLists.append(index)
                guard openLists.count <= Self.maximumNesting else {
                    throw .malformedExpression(
                        token: index + 1, reason: "nested deeper than \(Self.maximumNesting) operators")
                }
            } else if token == .close {
                guard let list = openLists.popLast(), index > list + 1 else {
                    let reason = index == 0 ? "`]` without an operator" : "an operator without arguments"
                    throw .malformedExpression(token: index + 1, reason: reason)
                }
            }
        }
        guard !tokens.isEmpty, openLists.isEmpty else {
            throw .malformedExpression(
                token: tokens.count + 1,
                reason: tokens.isEmpty ? "expected an expression, found nothing" : "expected `]`, found the end")
        }
        self.tokens = tokens
    }

    /// For tokens that are well formed by construction.
    init(unchecked tokens: [ListOpsToken]) {
        self.tokens = tokens
    }

    /// Number of tokens: 1 for a digit, 2 more than its arguments for an operator.
    public var length: Int { tokens.count }

    /// The ids that a model reads, without padding.
    public var ids: some Collection<UInt16> {
        tokens.lazy.map { UInt16($0.rawValue) }
    }
}

// MARK: - Parsing

extension ListOpsExpression {
    /// Parses either notation, its words separated by blanks. With any parenthesis in the text, all must stand
    /// exactly where the binary nesting puts them.
    ///
    /// - Throws: ``DatasetError/malformedExpression(token:reason:)``. O(length) time.
    public init(_ text: some StringProtocol) throws(DatasetError) {
        try self.init(bytes: text.utf8)
    }

    init(bytes: some Collection<UInt8>) throws(DatasetError) {
        var symbols: [Symbol] = []
        for word in bytes.split(separator: UInt8(ascii: " ")) {
            guard let symbol = Symbol(bytes: word) else {
                throw .malformedExpression(
                    token: symbols.count + 1, reason: "`\(Self.printable(word))` is not a ListOps token")
            }
            symbols.append(symbol)
        }
        let tokens = symbols.compactMap(\.token)
        guard tokens.count < symbols.count else {
            try self.init(tokens: tokens)
            return
        }
        do throws(DatasetError) {
            try self.init(tokens: tokens)
        } catch .malformedExpression(let token, let reason) {
            let positions = symbols.indices.filter { symbols[$0].token != nil } + [symbols.count]
            throw .malformedExpression(token: positions[min(token, positions.count) - 1] + 1, reason: reason)
        }
        try checkParentheses(symbols)
    }

    private func checkParentheses(_ found: [Symbol]) throws(DatasetError) {
        let expected = binarySymbols
        guard expected != found else { return }
        let index = zip(expected, found).enumerated().first { $0.element.0 != $0.element.1 }?.offset
        let position = index ?? min(expected.count, found.count)
        func describe(_ symbols: [Symbol]) -> String {
            position < symbols.count ? "`\(String(decoding: symbols[position].spelling, as: UTF8.self))`" : "the end"
        }
        throw .malformedExpression(
            token: position + 1, reason: "expected \(describe(expected)), found \(describe(found))")
    }

    /// At most 20 characters of a word from outside, without control characters.
    private static func printable(_ word: some Collection<UInt8>) -> String {
        let text = String(decoding: word.prefix(20), as: UTF8.self)
        return String(text.map { $0.isASCII && ($0.asciiValue ?? 0) < 0x20 || $0 == "\u{7F}" ? "?" : $0 })
    }
}

// MARK: - Printing

extension ListOpsExpression: CustomStringConvertible {
    /// The tokens separated by single blanks, without parentheses.
    public var description: String {
        String(decoding: Self.joined(tokens.lazy.map(\.spelling)), as: UTF8.self)
    }

    /// The binary nesting of the published files.
    public var binaryDescription: String {
        String(decoding: binaryBytes, as: UTF8.self)
    }

    var binaryBytes: [UInt8] {
        Self.joined(binarySymbols.lazy.map(\.spelling))
    }

    private static func joined(_ words: some Collection<[UInt8]>) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(words.count * 3)
        for word in words {
            if !bytes.isEmpty { bytes.append(UInt8(ascii: " ")) }
            bytes.append(contentsOf: word)
        }
        return bytes
    }

    /// An operator of k arguments opens k + 1 pairs; each argument, and the closing bracket, ends one.
    private var binarySymbols: [Symbol] {
        let arities = self.arities
        var symbols: [Symbol] = []
        symbols.reserveCapacity(tokens.count * 3)
        var depth = 0
        for (token, arity) in zip(tokens, arities) {
            if token.isOperator {
                symbols.append(contentsOf: repeatElement(.open, count: arity + 1))
                symbols.append(Symbol(token))
                depth += 1
                continue
            }
            symbols.append(Symbol(token))
            if token == .close {
                symbols.append(.close)
                depth -= 1
            }
            if depth > 0 { symbols.append(.close) }
        }
        return symbols
    }

    /// The number of arguments of each operator; 0 for the other tokens.
    private var arities: [Int] {
        var arities = [Int](repeating: 0, count: tokens.count)
        var openLists: [Int] = []
        for (index, token) in tokens.enumerated() {
            if token == .close {
                openLists.removeLast()
                continue
            }
            if let list = openLists.last { arities[list] += 1 }
            if token.isOperator { openLists.append(index) }
        }
        return arities
    }
}

/// A token or a parenthesis of the binary notation.
private struct Symbol: Equatable {
    static let open = Symbol(code: 0xFE)
    static let close = Symbol(code: 0xFF)
    private let code: UInt8

    init(_ token: ListOpsToken) { code = token.rawValue }

    private init(code: UInt8) { self.code = code }

    init?(bytes: some Collection<UInt8>) {
        switch (bytes.count, bytes.first) {
        case (1, UInt8(ascii: "(")): self = .open
        case (1, UInt8(ascii: ")")): self = .close
        default:
            guard let token = ListOpsToken(bytes: bytes) else { return nil }
            self.init(token)
        }
    }

    var token: ListOpsToken? { ListOpsToken(rawValue: code) }

    var spelling: [UInt8] {
        switch self {
        case .open: [UInt8(ascii: "(")]
        case .close: [UInt8(ascii: ")")]
        default: token?.spelling ?? []
        }
    }
}
