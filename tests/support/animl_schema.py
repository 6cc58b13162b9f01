"""The part of Animl's GraphQL schema that this project uses, with Animl's own type names."""

from __future__ import annotations

from graphql import build_schema

SCHEMA = build_schema("""
scalar Date
scalar JSONObject
enum Format { csv coco }
input FiltersInput {
  createdStart: Date  createdEnd: Date  addedStart: Date  addedEnd: Date
  cameras: [String!]  deployments: [String!]  labels: [String]  tags: [String]  reviewed: Boolean  custom: String
}
input ExportInput { format: Format!  timezone: String!  filters: FiltersInput!  onlyIncludeReviewed: Boolean!  aggregateObjects: Boolean! }
input QueryTaskInput { taskId: ID! }
input QueryImagesCountInput { filters: FiltersInput! }
input QueryProjectsInput { _ids: [String!] }
input QueryImagesInput {
  paginatedField: String  sortAscending: Boolean  limit: Int  next: String  previous: String  filters: FiltersInput!
}
type Validation { validated: Boolean!  validationDate: Date  userId: String }
type Label {
  _id: ID!  type: String!  labelId: String!  conf: Float  bbox: [Float!]  labeledDate: Date  mlModel: String  mlModelVersion: String
  userId: String  validation: Validation
}
type ImageObject { _id: ID!  bbox: [Float!]  locked: Boolean!  labels: [Label!] }
type ImageAddress { original: String  medium: String  small: String }
type Image {
  _id: ID!  projectId: String!  cameraId: String!  deploymentId: ID!  dateAdded: Date!  dateTimeAdjusted: Date  timezone: String!
  reviewed: Boolean  awaitingPrediction: Boolean  tags: [ID!]  url: ImageAddress  objects: [ImageObject!]
}
type ProjectLabel { _id: String!  name: String!  taxonomy: String  ml: Boolean }
type ProjectTag { _id: ID!  name: String!  color: String! }
input CreateProjectTagInput { name: String!  color: String! }
type ProjectTagsPayload { tags: [ProjectTag!] }
input ImageTagInput { imageId: ID!  tagId: ID! }
input CreateImageTagsInput { tags: [ImageTagInput!]! }
input CreateInternalLabelInput { labelId: String!  conf: Float!  bbox: [Float!]!  mlModel: String!  mlModelVersion: String! }
input CreateInternalLabelsInput { imageId: ID!  labels: [CreateInternalLabelInput!]! }
type StandardPayload { isOk: Boolean! }
type PageInfo { previous: String  hasPrevious: Boolean  next: String  hasNext: Boolean }
type ImagesConnection { images: [Image!]!  pageInfo: PageInfo }
type Point { type: String!  coordinates: [Float!]! }
type Location { _id: ID!  geometry: Point!  name: String }
type Deployment { _id: ID!  name: String!  timezone: String!  startDate: Date  location: Location }
type CameraConfig { _id: String!  deployments: [Deployment!]! }
type AutomationEvent { type: String!  label: String }
type AutomationAction {
  type: String!  alertRecipients: [String!]  mlModel: String  country: String  admin1Region: String
  confThreshold: Float  categoryConfig: JSONObject
}
type AutomationRule { _id: ID!  name: String!  event: AutomationEvent!  action: AutomationAction! }
input AutomationEventInput { type: String!  label: String }
input AutomationActionInput {
  type: String!  mlModel: String  country: String  admin1Region: String  alertRecipients: [String!]
  confThreshold: Float  categoryConfig: JSONObject
}
input AutomationRuleInput { _id: ID  name: String!  event: AutomationEventInput!  action: AutomationActionInput! }
input UpdateAutomationRulesInput { automationRules: [AutomationRuleInput!]! }
type UpdateAutomationRulesPayload { automationRules: [AutomationRule!] }
input QueryMLModelsInput { _ids: [String!] }
type Category { _id: String!  name: String!  color: String!  taxonomy: String }
type MLModel {
  _id: String!  description: String  version: String!  defaultConfThreshold: Float  categories: [Category!]!  expectsCrops: Boolean!
}
type Mutation {
  updateAutomationRules(input: UpdateAutomationRulesInput!): UpdateAutomationRulesPayload
  createProjectTag(input: CreateProjectTagInput!): ProjectTagsPayload
  createImageTags(input: CreateImageTagsInput!): StandardPayload
  createInternalLabels(input: CreateInternalLabelsInput!): StandardPayload
}
type Project {
  _id: String!  name: String!  cameraConfigs: [CameraConfig]  automationRules: [AutomationRule]  labels: [ProjectLabel!]  tags: [ProjectTag!]
}
type Task { _id: ID!  projectId: String!  type: String!  status: String!  created: Date!  updated: Date!  output: JSONObject }
type ImagesCount { count: Int }
type Query {
  exportAnnotations(input: ExportInput!): Task
  task(input: QueryTaskInput!): Task
  imagesCount(input: QueryImagesCountInput!): ImagesCount
  images(input: QueryImagesInput!): ImagesConnection
  projects(input: QueryProjectsInput): [Project]
  mlModels(input: QueryMLModelsInput): [MLModel!]
}
""")
