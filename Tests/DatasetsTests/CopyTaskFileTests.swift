import Foundation
import Testing

@testable import Datasets

@Suite struct CopyTaskFileTests {
    @Test func everyLineIsASequenceThatRepeatsItself() throws {
        let folder = try TemporaryFolder()
        let url = folder.url.appending(component: "copy.txt")
        try CopyTask(length: 32, symbols: 7).write(count: 1500, seed: 3, to: url)
        let lines = try String(contentsOf: url, encoding: .utf8).split(separator: "\n")
        #expect(lines.count == 1500)
        #expect(Set(lines).count > 1490, "the sequences differ")
        for line in lines {
            let tokens = try line.split(separator: " ").map { try #require(Int($0)) }
            let n = try #require(tokens.firstIndex(of: 0))
            #expect(tokens.count == 32 && Array(tokens[0..<n]) == Array(tokens[(n + 1)..<(2 * n + 1)]))
            #expect(tokens[(2 * n + 1)...].allSatisfy { $0 == 0 } && tokens[0..<n].allSatisfy { (1...7).contains($0) })
        }
    }
}
