/// A token of a ListOps expression. Its raw value is its id for models; 0 is padding.
public enum ListOpsToken: UInt8, CaseIterable, Hashable, Sendable {
    case zero = 1
    case one, two, three, four, five, six, seven, eight, nine
    /// `[MIN`: the smallest argument.
    case minimum
    /// `[MAX`: the largest argument.
    case maximum
    /// `[MED`: the median; of an even count the mean of the two middle values, rounded towards zero.
    case median
    /// `[SM`: the sum modulo 10.
    case sumModulo10
    /// `]`: the end of the arguments. Long Range Arena's own reader spells it `X`.
    case close

    /// The id of a word that is no token.
    public static let unknownID: Int32 = 16
    /// Ids from 0, padding, to ``unknownID``.
    public static let vocabularySize = 17
    /// Answers are digits.
    public static let classes = 10

    static let operators: [ListOpsToken] = [.minimum, .maximum, .median, .sumModulo10]
    private static let bracketed = operators + [.close]

    /// The token of a digit.
    ///
    /// - Precondition: `digit` is in `0...9`.
    public init(digit: Int) {
        guard (0...9).contains(digit), let token = ListOpsToken(rawValue: UInt8(digit + 1)) else {
            preconditionFailure("ListOpsToken: \(digit) is not a digit")
        }
        self = token
    }

    /// The token that `word` spells, or `nil`.
    public init?(_ word: some StringProtocol) {
        self.init(bytes: word.utf8)
    }

    init?(bytes: some Collection<UInt8>) {
        if bytes.count == 1, let byte = bytes.first, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) {
            self.init(rawValue: byte - UInt8(ascii: "0") + 1)
        } else if let token = Self.bracketed.first(where: { $0.spelling.elementsEqual(bytes) }) {
            self = token
        } else {
            return nil
        }
    }

    /// The value of a digit, `nil` for an operator or the closing bracket.
    public var digit: Int? {
        rawValue <= ListOpsToken.nine.rawValue ? Int(rawValue) - 1 : nil
    }

    /// True for the tokens that open a list of arguments.
    public var isOperator: Bool {
        rawValue >= ListOpsToken.minimum.rawValue && rawValue <= ListOpsToken.sumModulo10.rawValue
    }

    /// How the token is written in either notation, in ASCII.
    var spelling: [UInt8] { Self.spellings[Int(rawValue)] }

    private static let spellings: [[UInt8]] =
        ["", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "[MIN", "[MAX", "[MED", "[SM", "]"].map {
            Array($0.utf8)
        }
}

extension ListOpsToken: CustomStringConvertible {
    public var description: String { String(decoding: spelling, as: UTF8.self) }
}
