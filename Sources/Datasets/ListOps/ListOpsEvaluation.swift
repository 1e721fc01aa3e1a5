/// Two evaluators that share no code, so that each proves the other's answer.
extension ListOpsExpression {
    /// The answer, 0 to 9, by recursion over the tree. O(length log length) time at worst.
    public var value: Int {
        var position = 0
        return value(at: &position)
    }

    private func value(at position: inout Int) -> Int {
        let token = tokens[position]
        position += 1
        if let digit = token.digit { return digit }
        var arguments: [Int] = []
        while tokens[position] != .close {
            arguments.append(value(at: &position))
        }
        position += 1
        arguments.sort()
        let middle = arguments.count / 2
        switch token {
        case .minimum: return arguments[0]
        case .maximum: return arguments[arguments.count - 1]
        case .median where arguments.count.isMultiple(of: 2):
            return (arguments[middle - 1] + arguments[middle]) / 2
        case .median: return arguments[middle]
        default: return arguments.reduce(0, +) % 10
        }
    }

    /// The answer, 0 to 9, by a stack machine over the tokens. O(length) time.
    ///
    /// Where ``value`` sorts the arguments of a node, this keeps for each open list how often each digit came.
    public var stackMachineValue: Int {
        var lists: [DigitCounts] = []
        for token in tokens {
            let result: Int
            if token.isOperator {
                lists.append(DigitCounts(operation: token))
                continue
            } else if token == .close {
                result = lists.removeLast().result
            } else {
                result = Int(token.rawValue) - Int(ListOpsToken.zero.rawValue)
            }
            guard !lists.isEmpty else { return result }
            lists[lists.count - 1].add(result)
        }
        preconditionFailure("a well-formed expression returns at its last token")
    }

    /// The answer on which both evaluators agree.
    ///
    /// - Throws: ``DatasetError/unprovenAnswer(expression:answers:)`` if they do not.
    func provenValue() throws(DatasetError) -> Int {
        let answers = [value, stackMachineValue]
        guard answers[0] == answers[1] else {
            throw .unprovenAnswer(expression: description, answers: answers)
        }
        return answers[0]
    }
}

/// An open list of the stack machine: its operator, and how often each digit came.
private struct DigitCounts {
    let operation: ListOpsToken
    private var counts = [Int](repeating: 0, count: 10)
    private var total = 0

    init(operation: ListOpsToken) {
        self.operation = operation
    }

    mutating func add(_ digit: Int) {
        counts[digit] += 1
        total += 1
    }

    var result: Int {
        switch operation {
        case .minimum: digit(ofRank: 0)
        case .maximum: digit(ofRank: total - 1)
        case .median: (digit(ofRank: (total - 1) / 2) + digit(ofRank: total / 2)) / 2
        default: counts.indices.reduce(0) { $0 + $1 * (counts[$1] % 10) } % 10
        }
    }

    /// The digit at `rank`, from 0, in ascending order.
    private func digit(ofRank rank: Int) -> Int {
        var passed = 0
        for digit in counts.indices {
            passed += counts[digit]
            if passed > rank { return digit }
        }
        preconditionFailure("rank \(rank) of \(total) digits")
    }
}
