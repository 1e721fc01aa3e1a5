import Foundation
import SwiftProtobuf
import Torch

/// Writes an event file that TensorBoard shows: `tensorboard --logdir FOLDER`.
///
/// Each call reaches the file at once. Not for use from several tasks at a time.
public final class TensorBoardWriter {
    /// The event file.
    public let url: URL
    private let file: OutputFile
    private let now: () -> Date

    /// Opens an event file in a folder.
    ///
    /// - Parameter step: `nil` begins a new file. Otherwise the folder's newest file is continued: part of a record at
    ///   its end is cut off, and TensorBoard is told to forget what it says of steps after this one.
    /// - Throws: `FileWriteError`, or the system's error when an existing file cannot be read.
    public convenience init(folder: URL, resumingAfter step: Int? = nil) throws {
        try self.init(folder: folder, resumingAfter: step, now: { Date() })
    }

    init(folder: URL, resumingAfter step: Int?, now: @escaping () -> Date) throws {
        self.now = now
        if let step, let newest = try Self.files(in: folder).last {
            url = newest
            file = try OutputFile(appendingTo: newest.path)
            let end = EventRecord.read(try Data(contentsOf: newest, options: .mappedIfSafe)).end
            if end < file.count { try file.truncate(to: end) }
            if end == 0 { try writeVersion() }
            try write(step: step + 1) { event in
                event.sessionLog.status = .start
            }
        } else {
            let time = Int(now().timeIntervalSince1970)
            var free = folder.appendingPathComponent("\(Self.prefix)\(time).subq")
            while FileManager.default.fileExists(atPath: free.path) { free.appendPathExtension("next") }
            url = free
            file = try OutputFile(creating: free.path)
            try writeVersion()
        }
    }

    /// A point of a curve. Tags with a slash are grouped: `loss/train`.
    public func scalar(_ tag: String, _ value: Double, step: Int) throws {
        try scalars([tag: value], step: step)
    }

    /// A point of each of several curves.
    public func scalars(_ values: [String: Double], step: Int) throws {
        guard !values.isEmpty else { return }
        try write(step: step) { event in
            event.summary.value = values.sorted { $0.key < $1.key }.map { tag, value in
                var entry = TensorBoardSummary.Value()
                entry.tag = tag
                entry.simpleValue = Float(value)
                return entry
            }
        }
    }

    /// Text in Markdown, such as a recipe or a sample of generated text.
    public func text(_ tag: String, _ text: String, step: Int) throws {
        try write(step: step) { event in
            var entry = TensorBoardSummary.Value()
            entry.tag = "\(tag)/text_summary"
            entry.metadata.pluginData.pluginName = "text"
            entry.tensor.dtype = 7
            var dimension = TensorBoardShape.Dimension()
            dimension.size = 1
            entry.tensor.tensorShape.dim = [dimension]
            entry.tensor.stringVal = [Data(text.utf8)]
            event.summary.value = [entry]
        }
    }

    /// Returns when all events are on the disk.
    public func flush() throws { try file.synchronize() }

    /// Flushes and ends the file.
    public func close() throws {
        try file.synchronize()
        try file.close()
    }

    /// The event files of a folder, oldest first.
    static func files(in folder: URL) throws -> [URL] {
        try FileManager.default.contentsOfDirectory(atPath: folder.path)
            .filter { $0.hasPrefix(prefix) }.sorted().map { folder.appendingPathComponent($0) }
    }

    private static let prefix = "events.out.tfevents."

    private func writeVersion() throws {
        try write(step: 0) { $0.fileVersion = "brain.Event:2" }
    }

    private func write(step: Int, _ fill: (inout TensorBoardEvent) -> Void) throws {
        var event = TensorBoardEvent()
        event.wallTime = now().timeIntervalSince1970
        event.step = Int64(step)
        fill(&event)
        try file.write(EventRecord.framed(try event.serializedData()))
    }
}
