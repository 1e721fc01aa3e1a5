import Foundation
import Testing

@testable import Datasets

@Suite struct ListOpsExpressionTests {
    /// Rows of the golden table: binary notation, answer, plain notation, length.
    static func goldenRows() throws -> [[String]] {
        let url = try #require(Bundle.module.url(forResource: "listops", withExtension: "tsv"))
        let lines = try String(contentsOf: url, encoding: .utf8).split(separator: "\n").map(String.init)
        return lines.dropFirst().map { $0.components(separatedBy: "\t") }
    }

    static func randomExpressions(_ count: Int, seed: UInt64, lengthBelow: Int = 200) throws -> [ListOpsExample] {
        let configuration = ListOpsConfiguration(
            lengthAbove: 0, lengthBelow: lengthBelow, trainCount: 0, validationCount: 0, testCount: 0, seed: seed)
        var generator = try ListOpsGenerator(configuration)
        return try (0..<count).map { _ in try generator.next() }
    }

    @Test func goldenRowsAgree() throws {
        let rows = try Self.goldenRows()
        #expect(rows.count == 20)
        for row in rows {
            let expression = try ListOpsExpression(row[0])
            #expect(try expression == ListOpsExpression(row[2]))
            #expect(expression.binaryDescription == row[0])
            #expect(expression.description == row[2])
            #expect(String(expression.value) == row[1])
            #expect(String(expression.stackMachineValue) == row[1])
            #expect(String(expression.length) == row[3])
        }
    }

    @Test(arguments: [
        ("[MED 1 2 4 8 ]", 3), ("[MED 0 9 ]", 4), ("[MED 7 ]", 7), ("[SM 9 9 9 ]", 7), ("[MIN 3 [MAX 1 2 ] 9 ]", 2),
        ("[MAX [SM 5 5 ] [MED 9 0 1 ] ]", 1), ("4", 4),
    ])
    func answersByHand(text: String, answer: Int) throws {
        let expression = try ListOpsExpression(text)
        #expect(expression.value == answer)
        #expect(expression.stackMachineValue == answer)
    }

    @Test(arguments: 0..<20 as Range<UInt64>)
    func bothNotationsComeBack(seed: UInt64) throws {
        for example in try Self.randomExpressions(40, seed: seed) {
            let expression = example.expression
            #expect(try ListOpsExpression(expression.description) == expression)
            #expect(try ListOpsExpression(expression.binaryDescription) == expression)
            #expect(try ListOpsExpression(tokens: expression.tokens) == expression)
            #expect(expression.value == expression.stackMachineValue)
        }
    }

    @Test func idsAreFixed() throws {
        let expression = try ListOpsExpression("[MIN 0 [MAX 9 [MED 4 ] ] [SM 5 ] ]")
        #expect(Array(expression.ids) == [11, 1, 12, 10, 13, 5, 15, 15, 14, 6, 15, 15])
        #expect(ListOpsToken.unknownID == 16 && ListOpsToken.vocabularySize == 17)
        #expect(ListOpsToken.allCases.map(\.rawValue) == Array(1...15))
        #expect(ListOpsToken.allCases.allSatisfy { ListOpsToken($0.description) == $0 })
    }

    @Test(arguments: [
        ("", 1, "expected an expression, found nothing"),
        ("( )", 3, "expected an expression, found nothing"),
        ("[MIN 1 2", 4, "expected `]`, found the end"),
        ("[MIN ]", 2, "an operator without arguments"),
        ("]", 1, "`]` without an operator"),
        ("1 2", 2, "the expression has already ended, found `2`"),
        ("[MIN 1 ] ]", 4, "the expression has already ended, found `]`"),
        ("[AVG 1 ]", 1, "`[AVG` is not a ListOps token"),
        ("[MIN 10 ]", 2, "`10` is not a ListOps token"),
        ("( ( [MAX 2 ) ] ]", 7, "the expression has already ended, found `]`"),
        ("( ( [MAX 2 ) ]", 7, "expected `)`, found the end"),
        ("( ( [MAX 2 ] ) )", 5, "expected `)`, found `]`"),
        ("( ( ( [MAX 2 ) ] ) )", 3, "expected `[MAX`, found `(`"),
        ("( 7 )", 1, "expected `7`, found `(`"),
    ])
    func malformedTextNamesTheToken(text: String, token: Int, reason: String) {
        #expect(throws: DatasetError.malformedExpression(token: token, reason: reason)) {
            try ListOpsExpression(text)
        }
    }

    @Test func deepNestingIsRefusedNotFatal() throws {
        func nested(_ depth: Int) -> String {
            String(repeating: "[MAX ", count: depth) + "3 " + String(repeating: "] ", count: depth)
        }
        #expect(try ListOpsExpression(nested(256)).value == 3)
        #expect(throws: DatasetError.self) { try ListOpsExpression(nested(257)) }
        #expect(throws: DatasetError.self) { try ListOpsExpression(nested(100_000)) }
        #expect(throws: DatasetError.self) { try ListOpsExpression(String(repeating: "( ", count: 100_000)) }
    }

    @Test func longListsDoNotOverflow() throws {
        let digits = String(repeating: "9 ", count: 100_000)
        for (name, answer) in [("[SM", 0), ("[MED", 9), ("[MIN", 9), ("[MAX", 9)] {
            let expression = try ListOpsExpression("\(name) \(digits)]")
            #expect(expression.value == answer)
            #expect(expression.stackMachineValue == answer)
        }
    }

    @Test(arguments: 0..<100 as Range<UInt64>)
    func mutatedTextParsesOrIsRefused(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let example = try Self.randomExpressions(8, seed: seed)[7]
        let text = generator.next(below: 2) == 0 ? example.expression.description : example.expression.binaryDescription
        let alphabet = Array("0123456789[]MINAXEDS() X\u{0}\u{FF}é".utf8)
        for _ in 0..<20 {
            var bytes = Array(text.utf8)
            for _ in 0...generator.next(below: 3) where !bytes.isEmpty {
                let index = generator.next(below: bytes.count)
                let byte = alphabet[generator.next(below: alphabet.count)]
                switch generator.next(below: 3) {
                case 0: bytes[index] = byte
                case 1: bytes.insert(byte, at: index)
                default: bytes.remove(at: index)
                }
            }
            switch Result(catching: { () throws(DatasetError) in try ListOpsExpression(bytes: bytes) }) {
            case .success(let expression):
                #expect(expression.value == expression.stackMachineValue)
                #expect(try ListOpsExpression(expression.binaryDescription) == expression)
            case .failure(let error):
                #expect(!error.description.contains { $0.isNewline })
            }
        }
    }
}
