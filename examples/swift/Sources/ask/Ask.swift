// One question about one picture, answered by a directory that `fastvlm-mlx export --target swift` wrote.
//
//     swift run -c release ask DIRECTORY PICTURE "What is in the picture?"
//
// Not compiled where fastvlm-mlx is tested, which has no Swift; see docs/swift.md.

import Foundation
import MLXHuggingFace
import MLXLMCommon
import MLXVLM
import Tokenizers

@main
struct Ask {
    static func main() async throws {
        let arguments = CommandLine.arguments
        guard arguments.count == 4 else {
            FileHandle.standardError.write(Data("usage: ask DIRECTORY PICTURE QUESTION\n".utf8))
            exit(2)
        }
        let directory = URL(fileURLWithPath: arguments[1], isDirectory: true)
        let picture = URL(fileURLWithPath: arguments[2])

        let container = try await VLMModelFactory.shared.loadContainer(
            from: directory, using: #huggingFaceTokenizerLoader())

        // A module starts in training mode, where BatchNorm uses the picture's own statistics instead of the
        // stored ones. Loading does not change that in every version, so do it here, once.
        await container.perform { context in context.model.train(false) }

        let began = Date()
        let input = try await container.prepare(
            input: UserInput(prompt: arguments[3], images: [.url(picture)]))
        let answer = try await container.generate(
            input: input, parameters: GenerateParameters(maxTokens: 256, temperature: 0))

        var first: TimeInterval?
        for await event in answer {
            switch event {
            case .chunk(let text):
                first = first ?? Date().timeIntervalSince(began)
                print(text, terminator: "")
            case .info(let info):
                print()
                let told = String(
                    format: "time to first token %.3f s, %d positions of text, %.1f tokens/s\n",
                    first ?? 0, info.promptTokenCount, info.tokensPerSecond)
                FileHandle.standardError.write(Data(told.utf8))
            case .toolCall:
                break
            }
        }
    }
}
